"""Recipes: one file for each known source of scans, and their registry."""

from anatogen.core.errors import UserError
from anatogen.dataset.recipes import adni, breast_segmentation, duke, folder, folder_with_masks, lidc, mrnet
from anatogen.dataset.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        folder.RECIPE,
        folder_with_masks.RECIPE,
        mrnet.RECIPE,
        adni.RECIPE,
        duke.RECIPE,
        lidc.RECIPE,
        breast_segmentation.RECIPE,
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UserError: If there is none, listing those that there are.
    """
    if name not in RECIPES:
        raise UserError(f"recipe '{name}' is unknown: known are {', '.join(RECIPES)}")
    return RECIPES[name]
