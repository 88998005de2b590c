from engine.predict.rates import Assumptions
def assumptions(given):
    return Assumptions.model_validate(dict(x.split("=") for x in given))
