"""The method SCE: its networks, which view passes through which network, and the momentum update."""
