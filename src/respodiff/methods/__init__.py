"""RespoDiff and its baselines behind one interface, one file each."""
