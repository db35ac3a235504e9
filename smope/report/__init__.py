"""The report: one HTML page about runs, with its figures and tables as files beside it.

write.py          the files of a report
page.py           the page as one HTML text, with page.html.jinja and page.css
sections/         what the page says: base.py has the parts of a section, verdict.py the first
                  paragraph, accuracy.py scores, curves and comparisons, confusion.py errors,
                  classes.py confused classes and all classes, gallery.py the worst mistakes,
                  calibration.py confidence and unknown classes, experts.py experts and examples,
                  training.py losses and rates, cost.py costs, configurations and definitions,
                  launch.py command and environment, audit.py audits
figures.py        figures, each with a sentence and a table of its numbers
class_figures.py  the map of confused classes
training_figures.py  curves of losses and rates
style.py          colours and fonts of figures; PNG and SVG
live_pictures.py  the pictures that trackers show during a run
"""
