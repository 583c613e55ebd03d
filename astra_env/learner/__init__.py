"""What is trained under a policy's attacks, and what learners and policies expect of each other."""
