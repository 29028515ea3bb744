"""For those who work on the package: the sample, a rehearsal, the fault campaign."""
