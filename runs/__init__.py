"""What a training run leaves behind: checkpoints, its log and its folder."""
