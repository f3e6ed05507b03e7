"""C++ for a processor, compiled at first use with the system's compiler."""
