"""What a model or an adapter is derived from: lineage.json, and what can be known of a model folder."""
