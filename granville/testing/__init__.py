"""What Granville is tested with, shipped so that those who build on it test with it too."""
