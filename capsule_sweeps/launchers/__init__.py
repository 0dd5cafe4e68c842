"""From a plan to finished runs: in this process, in a pool of processes, on a cluster."""
