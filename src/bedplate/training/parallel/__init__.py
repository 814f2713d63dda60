"""Training on several processes with torch.distributed: the mesh, the distributed model, sharded states, launchers."""
