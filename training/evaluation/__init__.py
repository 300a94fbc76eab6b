"""What trained networks reach on images, alone and together; tables and pictures of it."""
