"""An SGLang plugin for some tests: schedulers write to their logs how many operators of torch a
round dispatches."""


def register() -> None:
    from tests.operators import count_rounds

    count_rounds()
