"""Planning with more than one process, device or machine, on `torch.distributed` as it is."""
