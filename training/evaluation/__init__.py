"""Measure trained networks on images, alone and as ensembles; tables and plots of the results."""
