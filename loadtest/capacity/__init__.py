"""How many replicas a load needs: measured points, a plan, and a simulation of many replicas."""
