"""How torch's operators carry units: a rule per operator, from what is known of its inputs to what of its output."""
