"""One RL round without Lightning's loops: plan, rollout, scoring, experience. Imports policies and rewards."""
