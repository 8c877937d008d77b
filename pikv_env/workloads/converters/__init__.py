"""Converters of other trace formats to the Mooncake line format. To add one: a module here, and a line below."""

from pikv_env.workloads.converters import azure, mooncake, servegen, weka
from pikv_env.workloads.converters.base import CONVERTERS, ConversionError, ConvertOptions, convert

__all__ = ["CONVERTERS", "ConversionError", "ConvertOptions", "azure", "convert", "mooncake", "servegen", "weka"]
