"""One file a kernel, named like it: ``cases(quick, device)`` lists its rows."""
