"""Rows of a user's file to pairs of token ids: row formats -> Pair -> EncodedExample -> MicroBatch."""
