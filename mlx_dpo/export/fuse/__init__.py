"""An adapter fused into its model."""
