"""From a run to what others use."""
