"""Values that everything else speaks in: states, errors, ids, workflows, outcomes, events. Imports nothing of ours."""
