"""One file per family of provider SDKs: where a call is opened and closed, nothing else."""
