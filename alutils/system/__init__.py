"""What lies below everything: devices, files, checks, seeds."""
