"""The HTTP dialects of the control plane, one module each."""
