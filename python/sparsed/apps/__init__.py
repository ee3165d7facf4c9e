"""What is built on the library: command line, demo, evaluation, lm-eval, pictures. Nothing else imports from here."""
