"""The torch modules of M3D-LaMed and M3D-CLIP."""
