"""What is on this machine: models in the Hub cache, in LM Studio's folder and in other folders, and near names."""
