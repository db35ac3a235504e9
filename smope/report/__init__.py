"""The report: one HTML page about runs, with its figures and tables as files beside it.

write.py          the files of a report
page.py           the page as one HTML text, with page.html.jinja and page.css
sections/         what the page says: base.py has the parts of a section, accuracy.py scores, curves
                  and comparisons, confusion.py errors, calibration.py confidence and unknown
                  classes, experts.py experts and examples, cost.py costs, configurations and
                  definitions
figures.py        figures, each with a sentence and a table of its numbers
style.py          colours and fonts of figures; PNG and SVG
live_pictures.py  the pictures that trackers show during a run
"""
