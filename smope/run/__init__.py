"""One run: plan.py, build.py, prepare.py, train.py and record.py are called in this order."""
