"""The method: two networks, which view goes through which, and the momentum update."""
