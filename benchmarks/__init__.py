"""Programs that measure the library; none of this is shipped."""
