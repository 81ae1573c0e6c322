/* A library, and no driver. */
int answer(void);

int answer(void)
{
    return 42;
}
