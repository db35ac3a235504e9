"""The model that is served: it classifies, and with `teaches` it learns and takes lessons back.

Images are classified one request after the other. A lesson is learned beside that, on a copy, which
takes the model's place at the end. Every version is a file of its own, as `smope learn` writes it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image

from smope.errors import Interrupted, UserError
from smope.run.artefact import Artefact, sha256
from smope.server.limits import Limits, Upload
from smope.server.refusal import UNREADABLE, Refusal, refusal
from smope.serving.class_folders import FEW_IMAGES, ClassFolders, class_name
from smope.serving.learning import Pupil
from smope.serving.lessons import LEAVE_OUT, Lesson, prepare_lesson
from smope.serving.lineage import before_last_lesson, last_lesson, parent_of
from smope.serving.predict import Classifier
from smope.serving.prediction import Prediction
from smope.serving.versions import write_version
from smope.storage.run_directory import model_file

BATCH = 4  # images that are decoded and classified at a time
STOPPED = "the server was stopped before the lesson was learned; nothing was written"


@dataclass(frozen=True)
class Version:
    """A model that has been served.

    Attributes:
        file: its name; that of the run directory, for a model from a checkpoint.
        how: what made it: "start", "learn" or "undo".
        lesson: the number of images of each class, of "learn" and "undo".
        classes: how many it knows.
    """

    file: str
    how: str
    lesson: dict[str, int]
    classes: int


class Served(NamedTuple):
    """What is served at a moment; never changed, so that whoever holds it sees one version.

    Attributes:
        classifier: classifies.
        versions: the models served so far; the last one is the classifier's.
        can_undo: whether the last thing that happened to the model is a lesson, and the model
            before it is at hand.
    """

    classifier: Classifier
    versions: tuple[Version, ...]
    can_undo: bool

    @property
    def artefact(self) -> Artefact:
        return self.classifier.artefact

    @property
    def method_name(self) -> str:
        return type(self.classifier.method).__name__


class Taught(NamedTuple):
    """What a lesson changed.

    Attributes:
        accuracy: how well classes are recognised before and after (see serving/learning.py).
        remarks: for people.
        served: the model that has learned it.
    """

    accuracy: dict[str, Any]
    remarks: list[str]
    served: Served


class Session:
    """A classifier for several clients at a time.

    Args:
        classifier: the model at the start.
        source: its file or run directory.
        limits: of what clients send.
        teaches: whether clients may teach it classes.
        folder: where new versions are written; None: where the model is.
        min_probability: below it an image is unknown; None: none is.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: Path,
        limits: Limits,
        *,
        teaches: bool = False,
        folder: Path | None = None,
        min_probability: float | None = None,
    ) -> None:
        self.limits = limits
        self.teaches = teaches
        self.min_probability = min_probability
        self._start = classifier.artefact
        file = model_file(source)
        self._latest = (folder or file.parent) / file.name
        self._start_folder = file.parent
        self.paths = (source, self._latest)  # their folders are not for clients
        # of a run directory without model.safetensors the last checkpoint is served
        start = classifier.artefact.file.path if classifier.artefact.file else source
        version = Version(start.name, "start", {}, len(classifier.class_names))
        self.served = Served(classifier, (version,), self._can_undo(classifier.artefact))
        self._predicting = threading.Lock()
        self._changing = threading.Lock()
        self._pupil: Pupil | None = None
        self._stopping = False

    def predict(
        self, uploads: Sequence[Upload], top: int
    ) -> tuple[Version, list[Prediction | UserError]]:
        """Classify images.

        Args:
            uploads: the images.
            top: how many classes each prediction names.

        Returns:
            The version that did, and for each image its prediction, or why it cannot be read.
        """
        results: dict[int, Prediction | UserError] = {}
        readable: list[int] = []

        def pictures() -> Iterator[Image]:
            for index, upload in enumerate(uploads):
                try:
                    picture = self.limits.decoded(upload)
                except UserError as error:
                    results[index] = error
                else:
                    readable.append(index)
                    yield picture

        with self._predicting:
            served = self.served
            classifier = served.classifier
            predictions = classifier.predict(
                pictures(),
                top=min(top, len(classifier.class_names)),
                min_probability=self.min_probability or 0.0,
                batch_size=BATCH,
                explain=True,
            )
            for count, prediction in enumerate(predictions):
                results[readable[count]] = prediction
        return served.versions[-1], [results[index] for index in range(len(uploads))]

    def learn(self, name: str, uploads: Sequence[Upload], more_images: bool = False) -> Taught:
        """Teach the model a class.

        Args:
            name: of the class.
            uploads: its images.
            more_images: whether images of a class that it knows are welcome.

        Raises:
            UserError: the name, an image or the lesson is not accepted, or the model is learning.
        """
        with self._changes():
            name = _class_name(name)
            artefact = self.served.artefact
            if name in artefact.class_names and not more_images:
                raise Refusal(
                    409,
                    f"class_name={name}: the model knows it already; send more_images=true to "
                    "teach it these images as well, or choose another name",
                )
            pupil = self.served.classifier.pupil(self._lesson(artefact, name, uploads, more_images))
            remarks = list(pupil.notes)
            if len(uploads) < FEW_IMAGES:
                remarks.append(
                    f"fewer than {FEW_IMAGES} images are often too few to recognise a class"
                )
            learned = self._learned(pupil)
            lesson = learned.lineage[-1]
            served = self._serve(learned, "learn", lesson["classes"])
        return Taught(lesson["accuracy"], remarks, served)

    def undo(self) -> tuple[dict[str, int], Served]:
        """Serve the model before its last lesson again.

        Returns:
            The lesson's classes and images, and what is served then.

        Raises:
            UserError: the last thing that happened is no lesson, the model before it is not at
                hand, or the model is learning.
        """
        with self._changes():
            artefact = self.served.artefact
            try:
                lesson, earlier = last_lesson(artefact), self._before(artefact)
            except UserError as error:
                self.served = self.served._replace(can_undo=False)
                text = str(refusal(409, error, self.paths)).removeprefix("--undo: ")
                raise Refusal(409, text.partition("; say where it is")[0]) from error
            served = self._serve(earlier, "undo", lesson["classes"])
        return lesson["classes"], served

    def _can_undo(self, artefact: Artefact) -> bool:
        try:
            return self.teaches and bool(self._before(artefact))
        except UserError:
            return False

    def _before(self, artefact: Artefact) -> Artefact:
        """The model before the last lesson; UserError where that was none, or has no file."""
        parent = parent_of(last_lesson(artefact))
        if parent.get("sha256") == sha256(self._start):
            return self._start
        try:
            return before_last_lesson(artefact, None)
        except UserError:
            # only a name: a hostile file must not choose which file is read
            with_start = self._start_folder / Path(str(parent.get("file"))).name
            if not with_start.is_file():
                raise
        return before_last_lesson(artefact, with_start)

    def stop(self) -> None:
        """End a lesson that is being learned, at its next step. A signal handler may call it."""
        self._stopping = True
        pupil = self._pupil
        if pupil is not None:
            pupil.trainer.interruption.request(signal.SIGINT)

    def refuse_unless_teaching(self) -> None:
        """Refusal where clients may not change the model."""
        if not self.teaches:
            raise Refusal(
                403, "learning is switched off; start the server with `smope serve MODEL --learn`"
            )

    @contextmanager
    def _changes(self) -> Iterator[None]:
        """One change of the model at a time, if changes are allowed at all."""
        self.refuse_unless_teaching()
        if not self._changing.acquire(blocking=False):
            raise Refusal(409, "the model is learning something else; try again when it is done")
        try:
            yield
        finally:
            self._changing.release()

    def _lesson(
        self, artefact: Artefact, name: str, uploads: Sequence[Upload], more_images: bool
    ) -> Lesson:
        for upload in uploads:
            self.limits.check_pixels(upload)
        folders = ClassFolders(
            f"class_name={name}",
            {name: [upload.content for upload in uploads]},
            Path(),
            {name: [upload.name for upload in uploads]},
        )
        try:
            return prepare_lesson(artefact, folders, more_images=more_images)
        except UserError as error:
            raise UserError(str(error).removesuffix(f", or {LEAVE_OUT}")) from error

    def _learned(self, pupil: Pupil) -> Artefact:
        self._pupil = pupil
        try:
            if self._stopping:
                raise Refusal(503, STOPPED)
            return pupil.learn()
        except Interrupted as error:
            raise Refusal(503, STOPPED) from error
        finally:
            self._pupil = None

    def _serve(self, artefact: Artefact, how: str, lesson: dict[str, int]) -> Served:
        """Write a version, and serve it from now on."""
        try:
            written = write_version(artefact, self._latest, None)
        except OSError as error:
            raise refusal(507, error, self.paths) from error
        assert written.file is not None
        classifier = self.served.classifier.of_version(written)
        version = Version(written.file.path.name, how, lesson, len(written.class_names))
        self._latest = written.file.path
        versions = (*self.served.versions, version)
        self.served = Served(classifier, versions, how == "learn" or self._can_undo(written))
        return self.served


def _class_name(text: str) -> str:
    """A class name that a client sent; it may look like a path, and none of this machine."""
    try:
        return class_name(text, "class_name")
    except UserError as error:
        raise Refusal(UNREADABLE, str(error)) from error
