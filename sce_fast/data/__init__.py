"""Images from files to views: the host decides everything, DALI executes it. Importing this loads no DALI."""
