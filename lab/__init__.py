"""The experiments: instruments, measures and the report, around the library ``rebasin``."""
