"""A trained member or an ensemble behind HTTP."""
