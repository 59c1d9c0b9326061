"""3D Slicer's own code at work, in a process of its own: its libraries do not get along with other builds of ITK.

`python tests/slicer_scene.py open FILE... FOLDER` opens files as segmentations, as Slicer's "Add data" does, and writes
what is then in the scene to FOLDER. `... save FOLDER` makes the segmentation of FOLDER/segments.npz with Slicer's
segments and has Slicer save it. Arrays are (x, y, z), places RAS in mm.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy


def main() -> None:
    """Open or save."""
    command, *files, folder = sys.argv[1:]
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    if command == "save":
        save(scene, logic, Path(folder))
    for file in files:
        node = logic.LoadSegmentationFromFile(file, True, "opened")
        describe(node, Path(folder) / Path(file).name)


def describe(node: slicer.vtkMRMLSegmentationNode | None, file: Path) -> None:
    """FILE.json: names, colours, terms of the segments in order; FILE.npz: their masks on one grid, its affine."""
    if node is None:
        file.with_name(f"{file.name}.json").write_text("null")
        return
    segmentation = node.GetSegmentation()
    found, images = [], []
    for number in range(segmentation.GetNumberOfSegments()):
        segment, term, image = segmentation.GetNthSegment(number), vtk.mutable(""), slicer.vtkOrientedImageData()
        segment.GetTag("TerminologyEntry", term)
        found.append({"name": segment.GetName(), "colour": segment.GetColor(), "term": str(term)})
        node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(number), image)
        images.append(image)
    file.with_name(f"{file.name}.json").write_text(json.dumps(found))
    np.savez(file.with_name(f"{file.name}.npz"), masks=on_one_grid(images), affine=affine_of(images[0]))


def on_one_grid(images: list[slicer.vtkOrientedImageData]) -> np.ndarray:
    """Slicer keeps no more of a mask than the box around it; voxel 0 is where the affine says."""
    extents = np.array([image.GetExtent() for image in images])
    masks = np.zeros((len(images), *(extents[:, 1::2].max(0) + 1)), bool)
    for mask, image, (x0, x1, y0, y1, z0, z1) in zip(masks, images, extents, strict=True):
        if x1 >= x0:
            values = vtk_to_numpy(image.GetPointData().GetScalars())
            shaped = values.reshape(z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1).transpose(2, 1, 0)
            mask[x0 : x1 + 1, y0 : y1 + 1, z0 : z1 + 1] = shaped > 0
    return masks


def affine_of(image: slicer.vtkOrientedImageData) -> np.ndarray:
    """Voxel to world."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def save(scene: slicer.vtkMRMLScene, logic: slicer.vtkSlicerSegmentationsModuleLogic, folder: Path) -> None:
    """As .seg.nrrd, in one layer where segments do not overlap; and exported to label maps."""
    given = np.load(folder / "segments.npz")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    for name, mask in zip(given["names"], given["masks"], strict=True):
        node.AddSegmentFromBinaryLabelmapRepresentation(image_of(mask, given["affine"]), str(name))
    node.GetSegmentation().CollapseBinaryLabelmaps(False)
    write(scene, node, "vtkMRMLSegmentationStorageNode", folder / "saved.seg.nrrd")
    exported = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    logic.ExportAllSegmentsToLabelmapNode(node, exported, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY)
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        write(scene, exported, "vtkMRMLVolumeArchetypeStorageNode", folder / f"exported{suffix}")


def image_of(mask: np.ndarray, affine: np.ndarray) -> slicer.vtkOrientedImageData:
    """A mask as Slicer holds it."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*mask.shape)
    image.GetPointData().SetScalars(numpy_to_vtk(mask.transpose(2, 1, 0).astype(np.uint8).ravel(), deep=True))
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(affine.ravel())
    image.SetGeometryFromImageToWorldMatrix(matrix)
    return image


def write(scene: slicer.vtkMRMLScene, node: slicer.vtkMRMLNode, kind: str, file: Path) -> None:
    """By the storage node that Slicer itself uses."""
    storage = scene.AddNewNodeByClass(kind)
    storage.SetFileName(str(file))
    if not storage.WriteData(node):
        raise SystemExit(f"3D Slicer could not write {file.name}")


if __name__ == "__main__":
    main()
