"""ONNX graphs: conversion, 8-bit integers, weights in files."""
