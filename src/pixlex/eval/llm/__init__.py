"""Language models that continue a text: endpoints and local ones behind one small interface."""
