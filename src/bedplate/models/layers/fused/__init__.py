"""Fusion for inference: linears fused into one product, and elementwise steps fused into one kernel."""
