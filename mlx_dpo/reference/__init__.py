"""The reference policy, its table of log-probs, and their cache on disk."""
