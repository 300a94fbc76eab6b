"""Plans how many replicas a load needs, from measured points and a simulation of many replicas."""
