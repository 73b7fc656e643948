"""The claim: finds due work and takes it for this worker."""
