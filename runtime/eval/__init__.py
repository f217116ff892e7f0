"""What a run's model is worth: tasks from files, texts, programs, and lm-eval's; saved beside the run and compared.

`subject.py` opens a run, `score.py` and `decode.py` ask it in batches, `tasks.py` reads files of questions, and each
kind of question has a file of its own. `harness.py` makes a run a model of lm-eval, which is imported only there.
"""
