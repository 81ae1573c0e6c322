"""HTTP over a small Kernel protocol: status now; more of it later stands on the same footing."""
