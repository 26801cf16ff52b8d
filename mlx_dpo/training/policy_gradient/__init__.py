"""PPO and RLOO: policy gradients on the scores of sampled completions."""
