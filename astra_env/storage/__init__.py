"""What a run keeps: checkpoints, run directories, locks, and whether a state fits."""
