"""Recipes: one file for each known source of scans, and their registry."""

from anatogen.data.recipes import breast_segmentation, folder, folder_with_masks, mrnet
from anatogen.data.recipes.recipe import Recipe
from anatogen.errors import UserError

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        folder.RECIPE,
        folder_with_masks.RECIPE,
        breast_segmentation.RECIPE,
        mrnet.RECIPE,
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
