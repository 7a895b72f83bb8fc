"""Pure functions of arrays, each with an interval; they import nothing of this library."""
